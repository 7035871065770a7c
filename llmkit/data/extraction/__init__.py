"""The text of web pages: their encoding, their main part, and a worker that survives hostile markup."""
