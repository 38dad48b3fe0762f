"""How each kind of method is trained: one module for each trainer that a method's specification can name."""
