"""Other servers, each in its own environment and tuned by a sweep, to be measured beside Shoal."""
