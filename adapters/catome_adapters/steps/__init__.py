"""Which denoising step it is."""
