; The race: driving, walls, ground, rescue, checkpoints, laps and clocks.

.segment "CODE"
.a16
.i16

; --- the grid -------------------------------------------------------------------------------------------------------------

place_on_grid:
    ldy #2
    lda [p_header],y
    sta kart_x
    ldy #4
    lda [p_header],y
    sta kart_y
    ldy #6
    lda [p_header],y
    sta heading
    sta move_dir
    stz kart_x_fraction
    stz kart_y_fraction
    stz speed
    stz steer
    stz height
    stz climb
    stz drift
    stz oil_timer
    stz rescue
    stz blink
    stz clock_phase
    stz clock_cs
    stz clock_s
    stz clock_m
    stz lap_cs
    stz lap_s
    stz lap_m
    stz last_cs
    stz last_s
    stz last_m
    stz best_cs
    stz best_s
    stz best_m
    lda #LAPS_START + 1     ; the run-up to the line is part of the first lap
    sta best_laps
    lda #SURFACE_ROAD
    sta ground
    sep #$20
.a8
    sta surface
    stz collision
    stz backward
    lda #LAPS_START
    sta laps
    lda num_checkpoints
    dec
    sta checkpoint
    rep #$20
.a16
    rts

countdown_frame:
    dec timer
    bne countdown_on
    lda #GO_FRAMES
    sta timer
    sep #$20
.a8
    lda #MODE_RACE
    sta game_mode
    rep #$20
.a16
countdown_on:
    jmp show_race

; --- one frame of the race ------------------------------------------------------------------------------------------------

race_frame:
    lda timer
    beq go_gone
    dec timer
go_gone:
    sep #$20
.a8
    stz collision
    rep #$20
.a16
    jsr tick_clocks
    lda rescue
    beq driving
    jsr rescue_frame
    jmp show_race
driving:
    jsr drive
    jsr count_checkpoints
    jsr judge_heading
    jmp show_race

; After the fifth lap the kart rolls to a stop: no buttons except START, no laps. START opens the menu.
finish_frame:
    lda joy_new
    and #BTN_START
    beq roll_out
    jmp menu_enter
roll_out:
    lda #.loword(~BTN_START)
    trb joy                 ; keep START: if it is held at the line, it must be released first
    stz joy_new
    sep #$20
.a8
    stz collision
    rep #$20
.a16
    lda rescue
    beq rolling
    jsr rescue_frame
    jmp show_race
rolling:
    jsr drive
    jsr judge_heading
    jmp show_race

; One frame of movement with the buttons in joy and joy_new.
drive:
    lda blink
    beq no_blink
    dec blink
no_blink:
    jsr hop
    jsr steering
    jsr pedals
    jsr travel
    jmp look_at_ground

; --- hop and drift --------------------------------------------------------------------------------------------------------

hop:
    lda height
    bne in_air
    lda joy_new
    and #BTN_L | BTN_R
    beq hop_done
    lda #HOP_CLIMB
    sta climb
    stz drift
in_air:
    lda climb
    sec
    sbc #HOP_GRAVITY
    sta climb
    clc
    adc height
    sta height
    beq landed
    bpl hop_done
landed:
    stz height
    stz climb
    ; Landing at speed with the wheels turned starts a drift.
    lda speed
    bmi hop_done
    cmp #DRIFT_MIN
    bcc hop_done
    lda steer
    beq hop_done
    lda #DRIFT_FRAMES
    sta drift
hop_done:
    rts

; --- steering -------------------------------------------------------------------------------------------------------------

steering:
    ; Wanted lock: left, right, or none when both or neither are held, or on oil.
    ldx #0
    lda oil_timer
    bne steer_to
    lda joy
    and #BTN_LEFT | BTN_RIGHT
    cmp #BTN_LEFT
    bne not_left
    ldx #.loword(-STEER_MAX)
not_left:
    cmp #BTN_RIGHT
    bne steer_to
    ldx #STEER_MAX
steer_to:
    txa
    beq steer_centre
    bmi steer_left
    lda steer
    clc
    adc #STEER_STEP
    bmi steer_set
    cmp #STEER_MAX
    bcc steer_set
    lda #STEER_MAX
    bra steer_set
steer_left:
    lda steer
    sec
    sbc #STEER_STEP
    bpl steer_set
    cmp #.loword(-STEER_MAX)
    bcs steer_set
    lda #.loword(-STEER_MAX)
    bra steer_set
steer_centre:
    lda steer
    beq steer_set
    bmi steer_back
    sec
    sbc #STEER_RETURN
    bpl steer_set
    lda #0
    bra steer_set
steer_back:
    clc
    adc #STEER_RETURN
    bmi steer_set
    lda #0
steer_set:
    sta steer

    ; A drift ends with its time or when the wheels come straight.
    lda drift
    beq no_drift
    dec drift
    lda steer
    bne no_drift
    stz drift
no_drift:

    ; Turn the nose: rate by speed, times lock; sharper in the air and in a drift.
    lda speed
    bpl speed_positive
    eor #$FFFF
    inc
speed_positive:
    lsr
    lsr
    lsr
    lsr
    lsr
    cmp #64
    bcc rate_known
    lda #63
rate_known:
    tax
    sep #$20
.a8
    lda turn_rates,x
    sta WRMPYA
    lda steer
    bpl lock_positive
    eor #$FF
    inc
lock_positive:
    sta WRMPYB
    rep #$20
.a16
    nop
    nop
    nop
    lda RDMPY
    lsr
    lsr
    sta tmp0
    ldx height
    beq turn_on_ground
    lsr                     ; air: half as much again
    bra turn_more
turn_on_ground:
    ldx drift
    beq turn_known
    lsr                     ; drift: three eighths more
    lsr
    sta tmp2
    lsr
    adc tmp2
turn_more:
    clc
    adc tmp0
    sta tmp0
turn_known:
    lda steer
    bmi turn_left
    lda heading
    clc
    adc tmp0
    bra turned
turn_left:
    lda heading
    sec
    sbc tmp0
turned:
    sta heading

    ; Grip: the direction of travel follows the nose.
    lda oil_timer
    beq has_grip
    dec oil_timer
    rts
has_grip:
    lda height
    bne no_grip
    lda heading
    sec
    sbc move_dir
    cmp #$8000              ; arithmetic shift right
    ror
    cmp #$8000
    ror
    ldx drift
    beq grip_full
    cmp #$8000
    ror
grip_full:
    tax
    clc
    adc move_dir
    sta move_dir
    ; Remove the last difference, which rounding would keep, and do not slide at low speed.
    txa
    inc
    cmp #2
    bcc align
    lda speed
    clc
    adc #96
    cmp #192
    bcs no_grip
align:
    lda heading
    sta move_dir
no_grip:
    rts

; --- pedals ---------------------------------------------------------------------------------------------------------------

pedals:
    ; What the ground allows: tmp0 top speed, tmp2 drag above it.
    lda #TOP_ROAD
    ldx #DRAG_ROAD
    ldy ground
    cpy #SURFACE_DIRT
    bne not_dirt
    lda #TOP_DIRT
    ldx #DRAG_DIRT
not_dirt:
    cpy #SURFACE_GRASS
    bne not_grass
    lda #TOP_GRASS
    ldx #DRAG_GRASS
not_grass:
    sta tmp0
    stx tmp2

    ; In the air the kart neither accelerates nor brakes, but the drag of the ground still works.
    lda height
    beq on_ground
    lda speed
    bmi no_push
    cmp tmp0
    bcs above_top
    lda joy
    and #BTN_B
    beq coasting
no_push:
    rts
on_ground:
    lda oil_timer
    beq no_oil_loss
    lda #OIL_LOSS
    jsr lose_speed
no_oil_loss:
    lda drift
    beq no_drift_loss
    lda #DRIFT_LOSS
    jsr lose_speed
no_drift_loss:
    ; Full steering at high speed costs some speed.
    lda steer
    cmp #STEER_MAX
    beq scrubbing
    cmp #.loword(-STEER_MAX)
    bne no_scrub
scrubbing:
    lda speed
    bmi no_scrub
    cmp #SCRUB_SPEED
    bcc no_scrub
    lda #SCRUB
    jsr lose_speed
no_scrub:

    ; Above the top speed of the ground, slow down to it with any buttons; brakes still work.
    lda speed
    bmi below_top
    cmp tmp0
    bcc below_top
    beq below_top
    jsr above_top
    lda joy
    and #BTN_B | BTN_Y
    cmp #BTN_Y
    beq braking
    rts

below_top:
    lda joy
    and #BTN_B | BTN_Y
    cmp #BTN_B
    beq accelerating
    cmp #BTN_Y
    beq braking
coasting:
    lda #COAST
    jmp lose_speed

; Take the drag off the speed in A, which is tmp0 at least: down to that, no further. Carry is set.
above_top:
    sbc tmp2
    cmp tmp0
    bcs over_top
    lda tmp0
over_top:
    sta speed
    rts

accelerating:
    lda speed
    bmi forward_brake
    lda #ACCEL_REACH
    sec
    sbc speed
    bpl reach_left
    lda #0
reach_left:
    asl                     ; / 128: shift up one, take the high byte
    xba
    and #$00FF
    sta tmp4
    lda speed
    sec                     ; the + 1
    adc tmp4
    cmp tmp0
    bcc speed_up
    lda tmp0
speed_up:
    sta speed
    rts
forward_brake:
    clc
    adc #FORWARD_BRAKE
    sta speed
    rts

braking:
    lda speed
    bmi reversing
    beq reversing
    sec
    sbc #BRAKE
    bpl brake_set
    lda #0
brake_set:
    sta speed
    rts
reversing:
    sec
    sbc #REVERSE_ACCEL
    cmp #.loword(-REVERSE_MAX)
    bcs reverse_set
    lda #.loword(-REVERSE_MAX)
reverse_set:
    sta speed
    rts

; Bring the speed closer to 0 by A.
lose_speed:
    sta tmp4
    lda speed
    bmi lose_reverse
    sec
    sbc tmp4
    bpl lose_set
    lda #0
lose_set:
    sta speed
    rts
lose_reverse:
    clc
    adc tmp4
    bmi lose_set
    lda #0
    sta speed
    rts

; --- movement and walls ---------------------------------------------------------------------------------------------------

; tmp0/tmp2 := speed * A * 4, A in -255..255: movement in 1/65536 quarter pixel.
speed_times:
    sta tmp4
    eor speed
    sta tmp6                ; sign of the product
    lda tmp4
    bpl factor_positive
    eor #$FFFF
    inc
factor_positive:
    sep #$20
.a8
    sta WRMPYA
    rep #$20
.a16
    lda speed
    bpl amount_positive
    eor #$FFFF
    inc
amount_positive:
    sta tmp4
    sep #$20
.a8
    sta WRMPYB
    rep #$20
.a16
    nop
    nop
    nop
    lda RDMPY
    sta tmp0
    sep #$20
.a8
    lda tmp4 + 1
    sta WRMPYB
    rep #$20
.a16
    nop
    nop
    nop
    lda RDMPY
    sta tmp2
    xba
    and #$FF00
    clc
    adc tmp0
    sta tmp0
    lda tmp2
    xba
    and #$00FF
    adc #0
    sta tmp2
    asl tmp0
    rol tmp2
    asl tmp0
    rol tmp2
    lda tmp6
    bpl product_done
    lda #0
    sec
    sbc tmp0
    sta tmp0
    lda #0
    sbc tmp2
    sta tmp2
product_done:
    rts

travel:
    lda move_dir
    jsr heading_step
    asl
    pha
    tax
    lda sine,x
    jsr speed_times
    lda tmp0
    sta move_x
    lda tmp2
    sta move_x + 2
    pla
    clc
    adc #256                ; cosine: a quarter turn ahead, 128 words
    and #$03FF
    tax
    lda sine,x
    eor #$FFFF
    inc                     ; y grows to the south
    jsr speed_times
    lda tmp0
    sta move_y
    lda tmp2
    sta move_y + 2

    lda kart_x_fraction
    clc
    adc move_x
    lda kart_x
    adc move_x + 2
    sta next_x
    lda kart_y_fraction
    clc
    adc move_y
    lda kart_y
    adc move_y + 2
    sta next_y
    jsr touches_wall
    bcs hit
    jsr go_x
    jmp go_y

hit:
    sep #$20
.a8
    lda #$80
    sta collision
    rep #$20
.a16
    stz drift
    lda push_x
    sta away_x
    lda push_y
    sta away_y
    jsr nudge
    jsr hit_response
    ; Move away from the wall, one axis at a time.
    lda kart_y
    sta next_y
    lda away_x
    jsr push_step
    clc
    adc kart_x
    sta next_x
    jsr touches_wall
    bcs no_push_x
    lda next_x
    sta kart_x
no_push_x:
    lda kart_x
    sta next_x
    lda away_y
    jsr push_step
    clc
    adc kart_y
    sta next_y
    jsr touches_wall
    bcs no_push_y
    lda next_y
    sta kart_y
no_push_y:
    rts

; A := PUSH with the sign of A, or 0.
push_step:
    cmp #0
    beq push_known
    bmi push_back
    lda #PUSH
    rts
push_back:
    lda #.loword(-PUSH)
push_known:
    rts

hit_response:
    ; Along a wall the kart scrapes: it keeps the movement along it. Compare the two parts of the movement.
    lda move_x + 2
    bpl :+
    eor #$FFFF
:   sta tmp0                ; |x|
    lda move_y + 2
    bpl :+
    eor #$FFFF
:   sta tmp2                ; |y|
    asl
    cmp tmp0
    bcs not_along_x
    lda kart_y
    sta next_y
    jsr touches_wall
    bcs bounce
    jsr go_x
    bra scrape
not_along_x:
    lda tmp0
    asl
    cmp tmp2
    bcs bounce
    lda kart_x
    sta next_x
    jsr touches_wall
    bcs bounce
    jsr go_y
scrape:
    ; One eighth of the speed goes each frame.
    lda speed
    cmp #$8000
    ror
    cmp #$8000
    ror
    cmp #$8000
    ror
    eor #$FFFF
    inc
    clc
    adc speed
    sta speed
    rts

bounce:
    ; A quarter of the speed, the other way, within limits. The kart stays where it was.
    lda heading
    sta move_dir
    lda speed
    bmi bounce_forward
    lsr
    lsr
    jsr limit_bounce
    eor #$FFFF
    inc
    sta speed
    bra free_kart
bounce_forward:
    eor #$FFFF
    inc
    lsr
    lsr
    jsr limit_bounce
    sta speed
free_kart:
    ; A kart that stands in a wall already (it was put there) is rescued.
    lda kart_x
    sta next_x
    lda kart_y
    sta next_y
    jsr touches_wall
    bcc free
    lda #1
    sta rescue
    stz speed
free:
    rts

limit_bounce:
    cmp #BOUNCE_MIN
    bcs not_too_soft
    lda #BOUNCE_MIN
not_too_soft:
    cmp #BOUNCE_MAX
    bcc not_too_hard
    lda #BOUNCE_MAX
not_too_hard:
    rts

; Turn the kart a little towards the way back to the road, so that it can leave each wall.
nudge:
    jsr surface_index
    lda [p_escape],y
    and #$00FF
    xba
    sec
    sbc heading
    bmi nudge_left
    cmp #NUDGE
    bcc nudged
    lda #NUDGE
    bra nudged
nudge_left:
    cmp #.loword(-NUDGE)
    bcs nudged
    lda #.loword(-NUDGE)
nudged:
    clc
    adc heading
    sta heading
    rts

go_x:
    lda kart_x_fraction
    clc
    adc move_x
    sta kart_x_fraction
    lda kart_x
    adc move_x + 2
    and #$0FFF
    sta kart_x
    rts

go_y:
    lda kart_y_fraction
    clc
    adc move_y
    sta kart_y_fraction
    lda kart_y
    adc move_y + 2
    and #$0FFF
    sta kart_y
    rts

; Carry set when a corner of the kart at (next_x, next_y) lies in a wall; push_x and push_y point away from it.
touches_wall:
    lda next_y
    sec
    sbc #KART_RADIUS
    and #$0FE0
    asl
    asl
    sta tmp4                ; northern row of cells
    lda next_y
    clc
    adc #KART_RADIUS
    and #$0FE0
    asl
    asl
    sta tmp6                ; southern row
    lda next_x
    sec
    sbc #KART_RADIUS
    jsr to_column
    sta tmp8
    lda next_x
    clc
    adc #KART_RADIUS
    jsr to_column
    sta tmpA
    stz push_x
    stz push_y
    stz touched
    lda tmp8
    ora tmp4
    jsr is_wall
    bcc north_west_free
    inc push_x
    inc push_y
north_west_free:
    lda tmpA
    ora tmp4
    jsr is_wall
    bcc north_east_free
    dec push_x
    inc push_y
north_east_free:
    lda tmp8
    ora tmp6
    jsr is_wall
    bcc south_west_free
    inc push_x
    dec push_y
south_west_free:
    lda tmpA
    ora tmp6
    jsr is_wall
    bcc south_east_free
    dec push_x
    dec push_y
south_east_free:
    lda touched             ; carry: any corner
    cmp #1
    rts

; Carry set when the 8-pixel cell at offset A is a wall.
is_wall:
    tay
    lda [p_surface],y
    and #$00FF
    cmp #SURFACE_WALL       ; the highest code: carry is set for walls
    bcc not_a_wall
    inc touched
not_a_wall:
    rts

to_column:
    lsr
    lsr
    lsr
    lsr
    lsr
    and #$007F
    rts

; --- the ground -----------------------------------------------------------------------------------------------------------

; Y := offset of the kart's 8-pixel cell.
surface_index:
    lda kart_y
    and #$0FE0
    asl
    asl
    sta tmp0
    lda kart_x
    jsr to_column
    ora tmp0
    tay
    rts

look_at_ground:
    jsr surface_index
    lda [p_surface],y
    and #$00FF
    sta ground
    ldx height
    bne ground_known        ; nothing happens to a kart in the air
    cmp #SURFACE_BOOST
    bne not_boost
    lda speed
    bmi ground_known
    lda #BOOST_SPEED
    cmp speed
    bcc ground_known
    sta speed
    bra ground_known
not_boost:
    cmp #SURFACE_OIL
    bne not_oil
    lda oil_timer
    bne ground_known
    lda #OIL_FRAMES
    sta oil_timer
    stz drift
    bra ground_known
not_oil:
    cmp #SURFACE_PIT
    beq falling
    cmp #SURFACE_WATER
    bne ground_known
falling:
    lda #RESCUE_FRAMES
    sta rescue
    stz speed
    stz steer
    stz drift
    stz oil_timer
ground_known:
; Publish the ground; a frame that touches a wall shows the wall.
publish_ground:
    lda collision
    and #$00FF
    beq no_touch
    lda #SURFACE_WALL
    bra ground_out
no_touch:
    lda ground
ground_out:
    sep #$20
.a8
    sta surface
    rep #$20
.a16
    rts

; --- rescue ---------------------------------------------------------------------------------------------------------------

rescue_frame:
    stz height
    stz climb
    dec rescue
    beq put_back
    rts
put_back:
    lda checkpoint
    and #$00FF
    asl
    asl
    asl
    tay
    lda [p_points],y
    sta kart_x
    iny
    iny
    lda [p_points],y
    sta kart_y
    iny
    iny
    lda [p_points],y
    sta heading
    sta move_dir
    stz kart_x_fraction
    stz kart_y_fraction
    stz speed
    stz steer
    lda #BLINK_FRAMES
    sta blink
    jsr look_at_ground
    jmp judge_heading

; --- checkpoints and laps -------------------------------------------------------------------------------------------------

; Only the next sector moves the count on and only the previous one takes it back; any other jump counts nothing.
count_checkpoints:
    jsr sector_index
    sep #$20
.a8
    lda [p_sector],y
    cmp checkpoint
    beq count_done
    sta tmp0
    lda checkpoint
    inc
    cmp num_checkpoints
    bne not_last
    lda #0
not_last:
    cmp tmp0
    beq forward
    lda checkpoint
    bne not_first
    lda num_checkpoints
not_first:
    dec
    cmp tmp0
    bne count_done
    ; One back; over the line that is a lap back.
    xba
    lda checkpoint
    bne no_lap_back
    lda laps
    cmp #LAPS_MIN + 1
    bcc no_lap_back
    dec laps
no_lap_back:
    xba
    sta checkpoint
    bra count_done
forward:
    sta checkpoint
    cmp #0
    bne count_done
    inc laps
    rep #$20
.a16
    bra lap_done
.a8
count_done:
    rep #$20
.a16
    rts

lap_done:
    lda laps
    and #$00FF
    cmp best_laps
    beq lap_known           ; this crossing is not a new one
    bcc lap_known
    sta best_laps
    lda lap_cs
    sta last_cs
    lda lap_s
    sta last_s
    lda lap_m
    sta last_m
    ; A best lap of zero means that no lap is complete.
    lda best_cs
    ora best_s
    ora best_m
    beq new_best
    lda last_m
    cmp best_m
    bne best_compared
    lda last_s
    cmp best_s
    bne best_compared
    lda last_cs
    cmp best_cs
best_compared:
    bcs no_best
new_best:
    lda last_cs
    sta best_cs
    lda last_s
    sta best_s
    lda last_m
    sta best_m
no_best:
    stz lap_cs
    stz lap_s
    stz lap_m
    jsr print_lap_times
    lda laps
    and #$00FF
    cmp #LAPS_FINISHED
    bne lap_known
    sep #$20
.a8
    lda #MODE_FINISH
    sta game_mode
    rep #$20
.a16
lap_known:
    rts

; Y := offset of the kart's 16-pixel cell.
sector_index:
    lda kart_x
    lsr
    lsr
    lsr
    lsr
    lsr
    lsr
    and #$003F
    sta tmp0
    lda kart_y
    and #$0FC0
    ora tmp0
    tay
    rts

judge_heading:
    jsr sector_index
    lda [p_direction],y
    and #$00FF
    sta course_dir
    sep #$20
.a8
    lda kart_direction
    sec
    sbc course_dir
    clc
    adc #64                 ; 0-127: within a quarter turn
    asl
    lda #0
    bcc judged
    lda #BACKWARD_FLAG
judged:
    sta backward
    rep #$20
.a16
    rts

; --- clocks ---------------------------------------------------------------------------------------------------------------

; 60 frames are 100 centiseconds: 1, 2, 2 in turn.
tick_clocks:
    lda clock_phase
    inc
    cmp #3
    bcc phase_set
    lda #0
phase_set:
    sta clock_phase
    ldy #2
    cmp #0
    bne two_hundredths
    ldy #1
two_hundredths:
    sty tmp0
    sed
    ldx #clock_cs
    jsr tick
    ldx #lap_cs
    jsr tick
    cld
    rts

; Add tmp0 centiseconds, if they fit, to the clock at X: words of centiseconds, seconds, minutes. Decimal mode is on.
tick:
    lda $0000,x
    clc
    adc tmp0
    cmp #$0100
    bcc ticked
    and #$00FF
    sta $0000,x
    lda $0002,x
    clc
    adc #1
    cmp #$0060
    bcc ticked_s
    lda $0004,x
    cmp #$0099
    bcs clock_full
    adc #1
    sta $0004,x
    lda #0
ticked_s:
    sta $0002,x
    rts
clock_full:
    lda #$0099              ; it stops at 99'59"99
ticked:
    sta $0000,x
    rts
