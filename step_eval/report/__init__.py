"""What evaluations show: tables, pictures, HTML pages."""
