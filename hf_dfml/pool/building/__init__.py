"""Making a pool: training members, their cards, publishing."""
