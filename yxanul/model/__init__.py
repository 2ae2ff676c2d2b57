"""The model: parameters in, logits out."""
