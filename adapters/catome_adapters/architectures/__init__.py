"""Finding the sites of the models that the library recognizes."""
