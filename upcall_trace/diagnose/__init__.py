"""Why a hotplug failed: findings about a capture. docs/diagnosis.md."""
