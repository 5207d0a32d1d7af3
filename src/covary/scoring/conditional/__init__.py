"""Statistics at equal confidence and at equal length."""
