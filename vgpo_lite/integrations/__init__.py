"""Visual guidance inside other trainers; each module needs the extra that bears its name."""
