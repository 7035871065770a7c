"""Tokenizers: training, loading and saving in Hugging Face format, chat templates, loss masks."""
