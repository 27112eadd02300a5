"""Real servers, real nodes and real clients for the end-to-end tests."""
