"""Documents, labelled examples and token shards: from where text comes to what training reads."""
