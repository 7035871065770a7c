"""Fine-tuning: conversations with loss on what the assistant says, and classification of texts."""
