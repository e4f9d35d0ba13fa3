"""What counts as a video file. Separate from ``vwm.data.video``, so that raw frames are read without a decoder."""

VIDEO_EXTENSIONS = ("mp4", "webm", "mkv", "mov", "avi", "m4v")
"""Extensions of video files, in lower case and without the dot."""
