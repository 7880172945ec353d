"""fastdreamer: DreamerV3, exactly the official algorithm, made fast."""

__version__ = "0.1.0"
