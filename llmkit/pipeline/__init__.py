"""The chain of stages: which kinds there are, what is up to date, what is wrong, what runs next."""
