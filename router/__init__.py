"""The router: takes requests, schedules steps, talks to the shards, streams tokens. Holds no torch."""
