"""What a run could fail of later, looked at before it begins."""
