"""The flags of the commands: what each means, what is allowed, and what a recipe says where none is given."""
