"""The trainers that a method's specification can name, one module each."""
