"""Decontamination: documents that hold texts models are measured on."""
