"""Images: data sets, attacks, victims, and the makers of their cases."""
