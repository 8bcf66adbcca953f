"""Ways to start the process of a training job."""
