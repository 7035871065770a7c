"""Tasks whose results are kept by what they depend on, and who does them: processes, Ray, or a scheduler's jobs."""
