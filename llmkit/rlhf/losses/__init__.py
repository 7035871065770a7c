"""The losses of alignment as pure units: tensors in, tensors out, no model and no trainer in sight."""
