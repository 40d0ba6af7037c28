"""One chooser a file: from scores to the layers that go."""
