"""Pages of the web: which addresses may be asked, one request within limits, and a crawl that is polite."""
