"""How a member is stored: timm's layout, transformers' layout, checks, safe loading."""
