"""Training: what turns texts into batches, and batches into weights."""
