"""Text: where it comes from, and how it is packed into samples of one length."""
