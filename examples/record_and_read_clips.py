"""Record an environment into shards and read them back as clips.

python examples/record_and_read_clips.py [FOLDER]
"""

import sys

import vwm

folder = sys.argv[1] if len(sys.argv) > 1 else "data/two_rooms"
vwm.record("vwm/TwoRooms-v0", folder, frames=400, size=32, workers=0, max_episode_frames=50)
vwm.inspect(folder)

clips = vwm.open_clips(folder, clip_length=8, fields=("frames", "actions"))
print(f"{len(clips)} clips; the order is a function of the seed, so it is the same on every machine")
clip = clips[0]
print(f"frames {clip['frames'].shape} {clip['frames'].dtype}, actions {clip['actions'].shape}")  # actions[t]: t to t+1
