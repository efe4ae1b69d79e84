; HomebrewKart: a Mode-7 time-trial racer.
;
; The main loop prepares one frame in RAM and sleeps; the vertical-blank interrupt counts the frame, always, and shows
; what was prepared. The picture costs the CPU almost nothing: HDMA reads each line's matrix straight from ROM, and a
; turn of the kart is one change of pointer.
;
; Convention: between routines A, X and Y are 16 bits wide, data bank 0, direct page 0.

.p816
.smart
.include "defs.inc"
.include "generated.inc"
.include "hardware.s"

.segment "CODE"
.a16
.i16

reset:
    sei
    clc
    xce
    rep #$38                ; 16 bits everywhere, decimal mode off
    ldx #stack_top
    txs
    lda #0
    tcd
    sep #$20
    pha
    plb
    rep #$20
    INIT_PPU

    ; Clear the low 8 KB by DMA. This also clears the stack, so it is a jump and not a call.
    jmp clear_low_ram
cleared:
    sep #$20
.a8
    lda RDNMI
    lda #$81                ; interrupt each frame, read the pads
    sta NMITIMEN
    rep #$20
.a16
    jsr clear_rest
    jsr load_common
    wai
    jsr menu_enter

main_loop:
    sep #$20
.a8
    lda #1
    sta frame_ready
sleep:                      ; a frame's work ends long before the next interrupt
    wai
    lda frame_ready
    bne sleep
pad_busy:
    lda HVBJOY
    lsr
    bcs pad_busy
    rep #$20
.a16
    lda joy
    eor #$FFFF
    and JOY1
    sta joy_new
    lda JOY1
    sta joy
    lda game_mode
    and #$00FF
    cmp #MODE_RACE
    beq in_race
    cmp #MODE_MENU
    beq in_menu
    cmp #MODE_COUNTDOWN
    beq in_countdown
    jsr finish_frame
    bra main_loop
in_race:
    jsr race_frame
    bra main_loop
in_menu:
    jsr menu_frame
    bra main_loop
in_countdown:
    jsr countdown_frame
    bra main_loop

; --- memory -------------------------------------------------------------------------------------------------------------

zero_word:
    .word 0

clear_low_ram:
    stz WMADDL
    sep #$20
.a8
    stz WMADDH
    lda #$08                ; one register, fixed source
    sta DMA0
    lda #<WMDATA
    sta DMA0 + 1
    ldx #.loword(zero_word)
    stx DMA0 + 2
    stz DMA0 + 4
    ldx #$2000
    stx DMA0 + 5
    lda #1
    sta MDMAEN
    rep #$20
.a16
    jmp cleared

; Clear the remaining 120 KB of work RAM and the 64 KB of video RAM in pieces of 8 KB, one per frame, so that all frames
; are counted.
clear_rest:
    ldy #15
    lda #$2000
    sta WMADDL
    sep #$20
.a8
    stz WMADDH
    lda #$08
    sta DMA0
    lda #<WMDATA
    sta DMA0 + 1
    jsr clear_pieces
    ldy #8
    ldx #0
    stx VMADDL
    lda #$09                ; two registers, fixed source
    sta DMA0
    lda #<VMDATAL
    sta DMA0 + 1
    jsr clear_pieces
    rep #$20
.a16
    rts

.a8
clear_pieces:
    ldx #.loword(zero_word)
    stx DMA0 + 2
    stz DMA0 + 4
clear_piece:
    ldx #$2000
    stx DMA0 + 5
    lda #1
    sta MDMAEN
    wai                     ; one piece a frame: no transfer stretches over a frame's end
    dey
    bne clear_piece
    rts
.a16

; Send tmp4 bytes from bank tmp2, address tmp0 to VRAM address tmp6.
; tmp8: 1 = whole words, 0 = low bytes only (tilemap of mode 7), 2 = high bytes only (its tiles).
; The screen must be dark.
to_vram:
    lda tmp6
    sta VMADDL
    lda tmp0
    sta DMA0 + 2
    lda tmp4
    sta DMA0 + 5
    sep #$20
.a8
    lda tmp2
    sta DMA0 + 4
    lda tmp8
    beq low_bytes
    cmp #2
    beq high_bytes
    lda #$01
    sta DMA0
    lda #<VMDATAL
    bra word_step
high_bytes:
    stz DMA0
    lda #<VMDATAH
word_step:
    sta DMA0 + 1
    lda #$80
    sta VMAIN
    bra transfer
low_bytes:
    stz DMA0
    lda #<VMDATAL
    sta DMA0 + 1
    stz VMAIN
transfer:
    lda #1
    sta MDMAEN
    rep #$20
.a16
    rts

.macro SEND source, bank, length, target, kind
    lda source
    sta tmp0
    lda bank
    sta tmp2
    lda #(length)
    sta tmp4
    lda #(target)
    sta tmp6
    lda #(kind)
    sta tmp8
    jsr to_vram
.endmacro

; Load the graphics of all courses, and set up the HDMA channels. Runs once, while the screen is off.
load_common:
    SEND #.loword(sky_tiles), #^sky_tiles, sky_tiles_end - sky_tiles, VRAM_TILES + 16, 1
    SEND #.loword(font), #^font, font_end - font, VRAM_FONT, 1
    SEND #.loword(sprites), #^sprites, sprites_end - sprites, VRAM_SPRITES, 1
    ; The sky's tilemap is 64 wide in VRAM as two halves of 32 columns.
    ldy #0
sky_row:
    phy
    tya
    xba
    lsr                     ; row * 128 bytes in ROM
    clc
    adc #.loword(sky_map)
    sta tmpA
    tya
    asl
    asl
    asl
    asl
    asl                     ; row * 32 words in VRAM
    clc
    adc #VRAM_SKY_MAP
    pha
    sta tmp6
    lda tmpA
    sta tmp0
    lda #^sky_map
    sta tmp2
    lda #64
    sta tmp4
    lda #1
    sta tmp8
    jsr to_vram
    pla
    clc
    adc #$0400
    sta tmp6
    lda tmpA
    clc
    adc #64
    sta tmp0
    lda #64
    sta tmp4
    jsr to_vram
    ply
    iny
    cpy #5
    bne sky_row

    ; The course map's tilemap: 14 x 14 tiles in a row.
    ldy #MAP_ROW
    ldx #MAP_TILE | MAP_PALETTE
map_row:
    tya
    asl
    asl
    asl
    asl
    asl
    clc
    adc #VRAM_SKY_MAP + MAP_COLUMN
    sta VMADDL
    lda #MAP_SIDE
    sta tmp0
map_tile:
    stx VMDATAL
    inx
    dec tmp0
    bne map_tile
    iny
    cpy #MAP_ROW + MAP_SIDE
    bne map_row

    ; HDMA channels.
    sep #$20
.a8
    lda #$03                ; p, p, p+1, p+1
    sta DMA1
    sta DMA2
    lda #<M7A
    sta DMA1 + 1
    lda #<M7C
    sta DMA2 + 1
    SPLIT_SCREEN
    lda #$02                ; one register, written twice
    sta DMA5
    lda #<BG2HOFS
    sta DMA5 + 1
    ldx #sky_hdma
    stx DMA5 + 2
    lda #WORK_RAM_BANK
    sta DMA5 + 4
    lda #VIEW_TOP
    sta sky_hdma
    lda #VIEW_LINES         ; the road has no such layer; below it the map stands still
    sta sky_hdma + 3
    lda #1
    sta sky_hdma + 6
    rep #$20
.a16
    jsr hide_sprites
    jmp clear_text

; Send the chosen course to VRAM: tilemap, tiles, course map, colours. Sets the map pointers. Takes three frames, during
; which the screen is off.
load_course:
    sep #$20
.a8
    lda #$80
    sta INIDISP
    stz HDMAEN
    rep #$20
.a16
    lda course
    and #$00FF
    sta tmpA
    asl
    adc tmpA                ; three banks a course
    adc #FIRST_COURSE_BANK
    sta tmpA
    .assert BANKS_A_COURSE = 3, error
    SEND #$8000, tmpA, $2000, $0000, 0
    SEND #$A000, tmpA, $2000, $2000, 0
    wai                     ; at most 16 KB a frame: a transfer over a frame's end would make the count late
    SEND #$C000, tmpA, $2000, $0000, 2
    SEND #$E000, tmpA, $2000, $2000, 2
    wai
    inc tmpA
    SEND #AUX_MAP, tmpA, MAP_SIDE * MAP_SIDE * 32, VRAM_TILES + MAP_TILE * 16, 1
    lda #AUX_PALETTE
    sta DMA0 + 2
    lda #512
    sta DMA0 + 5
    sep #$20
.a8
    stz CGADD
    stz DMA0                ; one register
    lda #<CGDATA
    sta DMA0 + 1
    lda tmpA
    sta DMA0 + 4
    lda #1
    sta MDMAEN
    ; Long pointers to the maps.
    lda tmpA
    sta p_surface + 2
    sta p_sector + 2
    sta p_direction + 2
    sta p_points + 2
    sta p_header + 2
    inc
    sta p_escape + 2
    rep #$20
.a16
    lda #$8000
    sta p_escape
    lda #AUX_SURFACE
    sta p_surface
    lda #AUX_SECTOR
    sta p_sector
    lda #AUX_DIRECTION
    sta p_direction
    lda #AUX_CHECKPOINTS
    sta p_points
    lda #AUX_HEADER
    sta p_header
    sep #$20
.a8
    lda [p_header]
    sta num_checkpoints
    lda #$0F
    sta screen
    lda #$3E
    sta hdma
    rep #$20
.a16
    rts

; --- the interrupt --------------------------------------------------------------------------------------------------------

nmi:
    rep #$30
    pha
    phx
    phy
    phb
    phd
    lda #0
    tcd
    sep #$20
.a8
    pha
    plb
    lda RDNMI
    rep #$20
.a16
    inc current_frame
    sep #$20
.a8
    lda frame_ready
    bne nmi_show
    jmp nmi_done
nmi_show:
    ; Sprites.
    ldx #0
    stx OAMADDL
    stz DMA0
    lda #$04
    sta DMA0 + 1
    ldx #oam_buffer
    stx DMA0 + 2
    lda #WORK_RAM_BANK
    sta DMA0 + 4
    ldx #544
    stx DMA0 + 5
    lda #1
    sta MDMAEN
    ; Text: row 1 each frame; other rows when they changed.
    lda #$80
    sta VMAIN
    lda #$01
    sta DMA0
    lda #<VMDATAL
    sta DMA0 + 1
    ldx #VRAM_TEXT_MAP + 32
    ldy #text_buffer + 64
    lda text_dirty
    lsr
    bcc nmi_one_row
    ldx #VRAM_TEXT_MAP
    stx VMADDL
    ldx #text_buffer
    stx DMA0 + 2
    ldx #5 * 64
    bra nmi_top
nmi_one_row:
    stx VMADDL
    sty DMA0 + 2
    ldx #64
nmi_top:
    stx DMA0 + 5
    lda #1
    sta MDMAEN
    lda text_dirty
    and #2
    beq nmi_no_text
    ldx #VRAM_TEXT_MAP + MAP_ROW * 32
    stx VMADDL
    ldx #text_buffer + MAP_ROW * 64
    stx DMA0 + 2
    ldx #14 * 64
    stx DMA0 + 5
    lda #1
    sta MDMAEN
nmi_no_text:
    stz text_dirty
    ; View: matrix tables, centre, scroll.
    ldx view_table
    stx DMA1 + 2
    stx DMA2 + 2
    lda view_bank_a
    sta DMA1 + 4
    lda view_bank_c
    sta DMA2 + 4
    lda camera_x
    sta M7X
    lda camera_x + 1
    sta M7X
    lda camera_y
    sta M7Y
    lda camera_y + 1
    sta M7Y
    rep #$20
.a16
    lda camera_x
    sec
    sbc #128
    sep #$20
.a8
    sta BG1HOFS
    xba
    sta BG1HOFS
    rep #$20
.a16
    lda camera_y
    sec
    sbc #VIEW_CENTRE
    sep #$20
.a8
    sta BG1VOFS
    xba
    sta BG1VOFS
    ldx sky_scroll
    stx sky_hdma + 1
    lda hdma
    sta HDMAEN
    lda screen
    sta INIDISP
    stz frame_ready
nmi_done:
    rep #$30
.a16
    pld
    plb
    ply
    plx
    pla
    rti

ignore:
    rti

.include "menu.s"
.include "race.s"
.include "screen.s"
.include "data.s"
.include "header.s"
