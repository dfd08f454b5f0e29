"""Operations and frames as text and as JSON."""
