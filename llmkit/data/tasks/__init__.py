"""Tasks whose rows are derived from what the installed Python documents about itself."""
