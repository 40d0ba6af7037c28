"""What is trained: one file each; its dataclass's fields are its options."""
