"""How each kind of method is trained."""
