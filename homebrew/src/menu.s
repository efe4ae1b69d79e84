; The menu: a turning view of the chosen course, its map and name.

.segment "CODE"
.a16
.i16

menu_enter:
    sep #$20
.a8
    lda #MODE_MENU
    sta game_mode
    rep #$20
.a16
    stz joy_new             ; the button that opened the menu has no effect in it
    stz spin
    jsr load_course
    jsr place_on_grid       ; nothing is left of the last race, nor of the last course
    jsr clear_text
    jsr draw_logo
    PRINT 15, 16, TEXT_WHITE, text_course
    lda course
    and #$00FF
.if COURSE_COUNT < 10
    inc
    inc                     ; digits follow the space: digit d is character d + 1
    ora #TEXT_YELLOW
    sta text_buffer + (15 * 32 + 23) * 2
    PRINT 15, 24, TEXT_WHITE, text_of_count
.else
    inc
    ldx #TEXT_YELLOW | 1    ; the tens
menu_tens:
    cmp #10
    bcc menu_units
    sbc #10
    inx
    bra menu_tens
menu_units:
    inc
    ora #TEXT_YELLOW
    sta text_buffer + (15 * 32 + 24) * 2
    stx text_buffer + (15 * 32 + 23) * 2
    PRINT 15, 25, TEXT_WHITE, text_of_count
.endif
    ldx #(17 * 32 + 16) * 2
    jsr print_name
    PRINT 20, 16, TEXT_GREEN, text_choose
    PRINT 22, 16, TEXT_GREEN, text_start
    PRINT 24, 16, TEXT_WHITE, text_help1
    PRINT 26, 16, TEXT_WHITE, text_help2
    lda #3
    tsb text_dirty
    jsr hide_sprites
    ; fall through: the first picture

menu_frame:
    lda joy_new
    and #BTN_START
    bne start_race
    lda joy_new
    and #BTN_LEFT | BTN_RIGHT
    beq menu_turn
    and #BTN_LEFT
    sep #$20
.a8
    bne menu_previous
    lda course
    inc
    cmp #COURSE_COUNT
    bcc menu_chosen
    lda #0
    bra menu_chosen
menu_previous:
    lda course
    dec
    bpl menu_chosen
    lda #COURSE_COUNT - 1
menu_chosen:
    sta course
    rep #$20
.a16
    jmp menu_enter

menu_turn:
    inc spin
    lda spin
    asl
    asl
    asl
    asl
    asl
    asl                     ; 64 of 65536 a frame: a turn takes 17 seconds
    sta heading
    lda #512 * 4
    sta kart_x
    sta kart_y
    jsr set_view
    stz sky_scroll          ; the logo's sky stands still
    rts

start_race:
    jsr place_on_grid
    jsr clear_text
    jsr race_labels
    lda #3
    tsb text_dirty
    lda #COUNT_FRAMES
    sta timer
    sep #$20
.a8
    lda #MODE_COUNTDOWN
    sta game_mode
    rep #$20
.a16
    jmp show_race

; Twelve letters, two tiles wide and three tall, in rows 1-3.
draw_logo:
    ldx #(1 * 32 + 3) * 2   ; where the letter goes, bytes
    ldy #0
logo_letter:
    lda logo,y
    and #$00FF
    cmp #$00FF
    beq logo_space
    sta tmp0
    asl
    clc
    adc tmp0
    asl                     ; six tiles a letter
    clc
    adc #LOGO_TILE + TEXT_YELLOW
    sta text_buffer,x
    inc
    sta text_buffer + 2,x
    inc
    sta text_buffer + 64,x
    inc
    sta text_buffer + 66,x
    inc
    sta text_buffer + 128,x
    inc
    sta text_buffer + 130,x
logo_space:
    inx
    inx
    inx
    inx
    iny
    cpy #logo_end - logo
    bne logo_letter
    rts

.segment "RODATA"
text_course:   .byte "COURSE", $FF
.if COURSE_COUNT < 10
text_of_count: .byte "/", COURSE_COUNT + 1, $FF
.else
text_of_count: .byte "/", COURSE_COUNT / 10 + 1, COURSE_COUNT .mod 10 + 1, $FF
.endif
text_choose:   .byte "< > CHOOSE", $FF
text_start:    .byte "START RACE", $FF
text_help1:    .byte "B GO   Y BRAKE", $FF
text_help2:    .byte "L R  HOP DRIFT", $FF
