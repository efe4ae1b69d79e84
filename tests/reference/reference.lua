-- The reference rules of the original system, stated once more in Lua from their description, for stable-retro's own
-- script engine: tests/test_reference.py demands that the Python terms and rules agree with it on every frame.

local best_progress = -1
local wall_frames = 0
local wall_calls = 0
local stop_early = false
local stopped_before = false

local function lap()
    return data.laps - 128
end

function reference_done()
    return stop_early or lap() >= 5
end

function reference_reward()
    local wall, checkpoint, terrain, time, backwards = 0, 0, 0, 0, 0

    if data.collision ~= 0 and data.speed < 600 then
        wall = 1
        wall_frames = wall_frames + 1
        if wall_frames > 6 then
            stop_early = true
        end
    end
    wall_calls = wall_calls + 1
    if wall_calls > 600 then
        wall_frames, wall_calls = 0, 0
    end

    local progress = data.checkpoint + lap() * data.num_checkpoints
    if progress > best_progress then
        best_progress = progress
        checkpoint = 1
    end

    if data.current_frame % 30 == 0 and data.current_frame ~= 0 then
        if data.surface ~= 64 then
            terrain = 1
        end
        if data.speed > 700 then
            time = 0.5
        else
            time = 1
        end
    end

    if data.backward == 0x10 and data.current_frame % 6 == 0 then
        backwards = 1
    end

    if stopped_before or lap() >= 5 then
        return 0
    end
    stopped_before = stop_early
    return -10 * wall + 300 * checkpoint - 15 * terrain - time - 2 * backwards
end
