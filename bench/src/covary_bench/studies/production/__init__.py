"""Questions about the service, piles and streams."""
