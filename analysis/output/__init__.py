"""Tables and run notes as text, HTML, JSON and others."""
