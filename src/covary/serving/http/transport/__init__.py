"""Connections and bodies: who may take how long, and what breaks off."""
