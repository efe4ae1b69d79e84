; What the player sees besides the road: view registers, sprites, text.

.segment "CODE"
.a16
.i16

; --- view -----------------------------------------------------------------------------------------------------------------

; A := the heading in A (65536 a turn) in the 512 steps of the tables.
heading_step:
    asl
    xba
    and #$00FF
    bcc :+
    ora #$0100
:   rts

; Point the matrix tables, the centre of rotation and the sky at the kart's position and heading.
set_view:
    lda heading
    jsr heading_step
    sta tmp0
    asl
    asl
    tax
    lda kart_x
    clc
    adc camera,x
    jsr to_pixels
    sta camera_x
    lda kart_y
    clc
    adc camera + 2,x
    jsr to_pixels
    sta camera_y
    lda tmp0
    and #63
    asl
    tax
    lda view_offsets,x
    sta view_table
    lda tmp0
    lsr
    lsr
    lsr
    lsr
    lsr
    lsr                     ; 0-7
    sep #$20
.a8
    pha
    clc
    adc #FIRST_VIEW_BANK
    sta view_bank_a
    pla
    sec
    sbc #2                  ; a quarter turn earlier
    and #7
    clc
    adc #FIRST_VIEW_BANK
    sta view_bank_c
    rep #$20
.a16
    lda heading             ; 1024 pixels a turn
    lsr
    lsr
    lsr
    lsr
    lsr
    lsr
    sta sky_scroll
    rts

; A := the signed quarter pixels in A in whole pixels, rounded.
to_pixels:
    clc
    adc #2
    cmp #$8000              ; arithmetic shift right
    ror
    cmp #$8000
    ror
    rts

; --- sprites --------------------------------------------------------------------------------------------------------------

; Slots: 0 countdown, 1-2 dust or splash, 3 kart, 4 shadow, 5 marker.
SLOT_COUNT  = oam_buffer
SLOT_DUST   = oam_buffer + 4
SLOT_KART   = oam_buffer + 12
SLOT_SHADOW = oam_buffer + 16
SLOT_MARKER = oam_buffer + 20
OFF_SCREEN  = 224
KART_LEFT   = 112
KART_TOP    = KART_LINE - 30
LOOK_KART   = $31           ; priority 3, palette 0, second table
LOOK_EFFECT = $33           ; palette 1
FLIP        = $40
; Tile numbers in the sprite sheet, sixteen tiles a row.
TILE_KART   = 0             ; four poses, turned ever further right
TILE_POSE   = 4             ; from one pose to the next
TILE_THREE  = 64
TILE_TWO    = 68
TILE_ONE    = 72
TILE_GO     = 76
TILE_SHADOW = 128
TILE_MARKER = 132
TILE_RIM    = 133
TILE_DUST   = 134           ; large, then small
TILE_SPLASH = 148           ; large, then small

hide_sprites:
    ldx #508
    sep #$20
.a8
hide_one:
    lda #OFF_SCREEN
    sta oam_buffer + 1,x
    stz oam_buffer,x
    dex
    dex
    dex
    dex
    bpl hide_one
    ldx #31
    lda #0
size_one:
    sta oam_buffer + 512,x
    dex
    bpl size_one
    lda #%10000010          ; slots 0 and 3 large
    sta oam_buffer + 512
    lda #%00000010          ; slot 4 large
    sta oam_buffer + 513
    rep #$20
.a16
    rts

show_race:
    jsr set_view
    ; Marker: world to map is 7/64.
    lda kart_x
    jsr to_map
    sep #$20
.a8
    clc
    adc #MAP_COLUMN * 8 - 4
    sta SLOT_MARKER
    rep #$20
.a16
    lda kart_y
    jsr to_map
    sep #$20
.a8
    clc
    adc #MAP_ROW * 8 - 4
    sta SLOT_MARKER + 1
    lda #TILE_MARKER
    sta SLOT_MARKER + 2
    lda current_frame
    and #$10
    beq :+
    lda #TILE_RIM
    sta SLOT_MARKER + 2
:   lda #LOOK_EFFECT
    sta SLOT_MARKER + 3

    ; Countdown and GO.
    lda #OFF_SCREEN
    sta SLOT_COUNT + 1
    lda game_mode
    cmp #MODE_COUNTDOWN
    beq show_count
    cmp #MODE_RACE
    bne count_shown
    lda timer
    beq count_shown
    lda #TILE_GO
    bra count_tile
show_count:
    lda #TILE_THREE
    ldx timer
    cpx #121
    bcs count_tile
    lda #TILE_TWO
    cpx #61
    bcs count_tile
    lda #TILE_ONE
count_tile:
    sta SLOT_COUNT + 2
    lda #112
    sta SLOT_COUNT
    lda #14
    sta SLOT_COUNT + 1
    lda #LOOK_EFFECT
    sta SLOT_COUNT + 3
count_shown:

    ; The kart: pose from the steering, further in a drift, wobbling on oil.
    lda #LOOK_KART
    sta SLOT_KART + 3
    rep #$20
.a16
    lda oil_timer
    beq pose_by_steer
    and #$0008
    sec
    sbc #4
    asl
    asl
    bra pose_from
pose_by_steer:
    lda steer
pose_from:
    bpl pose_right
    eor #$FFFF
    inc
    sep #$20
.a8
    xba
    lda #LOOK_KART | FLIP
    sta SLOT_KART + 3
    xba
    rep #$20
.a16
pose_right:
    ldx #TILE_KART
    cmp #4
    bcc pose_known
    ldx #TILE_KART + TILE_POSE
    cmp #12
    bcc pose_known
    ldx #TILE_KART + 2 * TILE_POSE
    ldy drift
    bne pose_far
    ldy oil_timer
    beq pose_known
pose_far:
    ldx #TILE_KART + 3 * TILE_POSE
pose_known:
    txa
    sep #$20
.a8
    sta SLOT_KART + 2
    lda #KART_LEFT
    sta SLOT_KART
    sta SLOT_SHADOW
    ; Height lifts it; rough ground shakes it; water swallows it.
    rep #$20
.a16
    lda height
    lsr
    lsr
    lsr
    sta tmp0
    lda #KART_TOP
    sec
    sbc tmp0
    sta tmp2
    lda rescue
    bne sinking
    lda ground
    cmp #SURFACE_GRASS
    beq shaking
    cmp #SURFACE_DIRT
    bne kart_placed
shaking:
    lda speed
    clc
    adc #64
    cmp #128
    bcc kart_placed
    lda height
    bne kart_placed
    lda current_frame
    lsr
    lsr
    and #1
    eor #$FFFF
    sec
    adc tmp2
    sta tmp2
    bra kart_placed
sinking:
    ; RESCUE_FRAMES: sink, then nothing until the kart stands on the road again.
    lda #RESCUE_FRAMES
    sec
    sbc rescue
    cmp #40
    bcs kart_gone
    lsr
    lsr
    clc
    adc tmp2
    sta tmp2
    lda current_frame
    and #2
    beq kart_placed
kart_gone:
    lda #OFF_SCREEN
    sta tmp2
kart_placed:
    lda blink
    and #4
    beq :+
    lda #OFF_SCREEN
    sta tmp2
:   sep #$20
.a8
    lda tmp2
    sta SLOT_KART + 1
    ; The shadow stays on the ground; it shows only below a kart in the air.
    lda #TILE_SHADOW
    sta SLOT_SHADOW + 2
    lda #LOOK_EFFECT
    sta SLOT_SHADOW + 3
    ldx height
    beq no_shadow
    lda #KART_TOP + 2
    bra shadow_set
no_shadow:
    lda #OFF_SCREEN
shadow_set:
    sta SLOT_SHADOW + 1
    jsr show_dust
    rep #$20
.a16
    jmp show_text

; Dust on rough ground and in a drift, splashes in the water. A is 8 bits wide here.
.a8
show_dust:
    lda #OFF_SCREEN
    sta SLOT_DUST + 1
    sta SLOT_DUST + 5
    lda #LOOK_EFFECT
    sta SLOT_DUST + 3
    sta SLOT_DUST + 7
    ldx rescue
    beq no_splash
    cpx #RESCUE_FRAMES - 44
    bcc dust_done
    ldy #TILE_SPLASH
    bra dust_at
no_splash:
    ldx height
    bne dust_done
    ldx speed
    bmi dust_done
    cpx #160
    bcc dust_done
    ldy #TILE_DUST
    ldx drift
    bne dust_at
    ldx ground
    cpx #SURFACE_DIRT
    beq dust_at
    cpx #SURFACE_GRASS
    bne dust_done
dust_at:
    ; The two puffs alternate between large and small, near and far.
    tya
    sta SLOT_DUST + 2
    inc
    sta SLOT_DUST + 6
    lda current_frame
    and #4
    beq :+
    lda SLOT_DUST + 6
    sta SLOT_DUST + 2
    dec
    sta SLOT_DUST + 6
:   lda current_frame
    and #3
    clc
    adc #KART_LEFT - 3
    sta SLOT_DUST
    lda #KART_LEFT + 28
    sta SLOT_DUST + 4
    lda current_frame
    lsr
    and #3
    sta tmp0
    lda #KART_LINE - 6
    sec
    sbc tmp0
    sta SLOT_DUST + 1
    lda #KART_LINE - 9
    clc
    adc tmp0
    sta SLOT_DUST + 5
dust_done:
    rts
.a16

; Quarter pixels of the world to pixels of the map: times 7, by 256.
to_map:
    sta tmp0
    asl
    asl
    asl
    sec
    sbc tmp0
    clc
    adc #128                ; round
    xba
    and #$00FF
    rts

; --- text -----------------------------------------------------------------------------------------------------------------

clear_text:
    ldx #28 * 64 - 2
    lda #TEXT_WHITE
clear_word:
    sta text_buffer,x
    dex
    dex
    bpl clear_word
    lda #3
    tsb text_dirty
    rts

; Print the string at Y (ends with $FF) to offset X with the look in tmp0.
print:
    lda $0000,y
    and #$00FF
    cmp #$00FF
    beq printed
    ora tmp0
    sta text_buffer,x
    inx
    inx
    iny
    bra print
printed:
    rts

; Print the course's name, which stands in its header, to offset X.
print_name:
    ldy #8
name_letter:
    lda [p_header],y
    and #$00FF
    ora #TEXT_YELLOW
    sta text_buffer,x
    inx
    inx
    iny
    cpy #8 + NAME_LENGTH - 1
    bne name_letter
    rts

race_labels:
    ldx #(15 * 32 + 16) * 2
    jsr print_name
    PRINT 1, 1, TEXT_WHITE, text_lap
    PRINT 17, 16, TEXT_GREEN, text_speed
    PRINT 20, 16, TEXT_GREEN, text_last
    PRINT 22, 16, TEXT_GREEN, text_best
    PRINT 24, 16, TEXT_GREEN, text_ground
    stz shown
    ; fall through

print_lap_times:
    ldx #(20 * 32 + 21) * 2
    ldy #last_cs
    jsr print_clock
    ldx #(22 * 32 + 21) * 2
    ldy #best_cs
    jmp print_clock

; Print the clock at Y (three BCD words) to offset X: MM'SS"CC, without a leading zero.
print_clock:
    lda $0004,y
    cmp #$0010
    bcs long_clock
    lda #TEXT_WHITE
    jsr put_word
    lda $0004,y
    jsr low_digit
    bra minutes_shown
long_clock:
    jsr two_digits
minutes_shown:
    lda #TEXT_WHITE | CHAR_MINUTE
    jsr put_word
    lda $0002,y
    jsr two_digits
    lda #TEXT_WHITE | CHAR_SECOND
    jsr put_word
    lda $0000,y
two_digits:
    pha
    lsr
    lsr
    lsr
    lsr
    jsr low_digit
    pla
low_digit:
    and #$000F
    inc                     ; digits follow the space
    ora #TEXT_WHITE
put_word:
    sta text_buffer,x
    inx
    inx
    rts

show_text:
    ; The number is 1 on the grid, and stays at 5 after the last lap.
    lda laps
    and #$00FF
    sec
    sbc #LAPS_START
    beq first_lap
    bmi first_lap
    cmp #6
    bcc lap_shown
    lda #5
    bra lap_shown
first_lap:
    lda #1
lap_shown:
    inc
    ora #TEXT_YELLOW
    sta text_buffer + (32 + 5) * 2
    ldx #(32 + 23) * 2
    ldy #clock_cs
    jsr print_clock

    ; The bar: 72 pixels for 1152.
    lda speed
    bpl :+
    eor #$FFFF
    inc
:   lsr
    lsr
    lsr
    lsr
    ldx #(18 * 32 + 16) * 2
bar_tile:
    sta tmp0
    cmp #8
    bcc bar_part
    lda #8
bar_part:
    clc
    adc #TEXT_GREEN + BAR_TILE
    sta text_buffer,x
    inx
    inx
    lda tmp0
    sec
    sbc #8
    bcs bar_next
    lda #0
bar_next:
    cpx #(18 * 32 + 25) * 2
    bne bar_tile

    ; Name of the ground, or how the race ended.
    lda game_mode
    and #$00FF
    cmp #MODE_FINISH
    bne show_ground
    PRINT 24, 16, TEXT_YELLOW, text_finish
    bra ground_shown
show_ground:
    lda surface
    and #$00FF
    ldy #0
find_ground:
    cmp ground_codes,y
    beq ground_found
    iny
    iny
    cpy #ground_codes_end - ground_codes
    bne find_ground
    ldy #0
ground_found:
    tya
    asl
    asl                     ; eight letters a name
    clc
    adc #.loword(ground_names)
    tay
    lda #8
    sta tmp2
    lda #TEXT_YELLOW
    sta tmp0
    ldx #(24 * 32 + 23) * 2
ground_letter:
    lda $0000,y
    and #$00FF
    ora tmp0
    sta text_buffer,x
    inx
    inx
    iny
    dec tmp2
    bne ground_letter
ground_shown:

    ; The most urgent message.
    lda game_mode
    and #$00FF
    ldx #MESSAGE_READY
    cmp #MODE_COUNTDOWN
    beq message_known
    ldx #MESSAGE_FINISH
    cmp #MODE_FINISH
    beq message_known
    ldx #MESSAGE_RESCUE
    lda rescue
    bne message_known
    ldx #MESSAGE_WRONG
    lda backward
    and #$00FF
    bne message_known
    ldx #MESSAGE_NONE
message_known:
    cpx shown
    beq message_shown
    stx shown
    txa
    asl
    tax
    ldy message_texts,x
    lda #TEXT_RED
    sta tmp0
    ldx #(26 * 32 + 16) * 2
    jsr print
message_shown:
    lda #2
    tsb text_dirty
    rts

.segment "RODATA"
text_lap:    .byte "LAP  /5", $FF
text_speed:  .byte "SPEED", $FF
text_last:   .byte "LAST", $FF
text_best:   .byte "BEST", $FF
text_ground: .byte "GROUND", $FF
text_finish: .byte "FINISH!        ", $FF
message_texts:
    .word .loword(message_none), .loword(message_wrong), .loword(message_finish)
    .word .loword(message_ready), .loword(message_rescue)
message_none:   .byte "            ", $FF
message_wrong:  .byte "WRONG WAY!  ", $FF
message_finish: .byte "PRESS START ", $FF
message_ready:  .byte "GET READY   ", $FF
message_rescue: .byte "RESCUE      ", $FF
ground_codes:
    .word SURFACE_ROAD, SURFACE_START, SURFACE_DIRT, SURFACE_GRASS, SURFACE_BOOST
    .word SURFACE_OIL, SURFACE_WALL, SURFACE_PIT, SURFACE_WATER
ground_codes_end:
ground_names:
    .byte "ROAD    ", "LINE    ", "DIRT    ", "GRASS   ", "BOOST!  "
    .byte "OIL     ", "WALL!   ", "PIT     ", "WATER   "
