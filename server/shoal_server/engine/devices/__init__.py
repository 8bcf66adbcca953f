"""What is special to a processor or a GPU, one file each."""
