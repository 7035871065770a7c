"""Personal data: finding it in texts, and masking it, replacing it, or dropping the document."""
