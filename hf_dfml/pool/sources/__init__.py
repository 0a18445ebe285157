"""Where members come from: folders, the Hub, lock files; downloads, their budget and their hashes."""
