"""A folder for each shipped model, in diffusers' format; `catome.load_shipped()` loads it."""
