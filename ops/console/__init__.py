"""The console: one live page that the gateway serves, without a build step."""
