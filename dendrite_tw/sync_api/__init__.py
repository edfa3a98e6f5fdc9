"""What clients read: sync, timelines, context, members, relations, filters."""
