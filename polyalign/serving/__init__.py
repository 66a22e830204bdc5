"""What people use after training: image search."""
