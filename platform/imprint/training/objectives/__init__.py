"""What the jobs minimise that make a backbone: autoencoding, contrast, denoising."""
