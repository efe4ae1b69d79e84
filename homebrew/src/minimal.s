; A minimal Mode-7 ROM: one course, the game's split of the screen, matrix tables read by HDMA, and a main loop that
; sleeps. The view turns slowly.
; The speed benchmark compares the game with it (benchmarks/rom_speed.py).

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
    rep #$38
    ldx #stack_top
    txs
    lda #0
    tcd
    sep #$20
    pha
    plb
    rep #$20
    INIT_PPU
    stz current_frame

    ; Tilemap, tiles and colours of the first course.
    stz VMADDL
    sep #$20
.a8
    stz VMAIN
    stz DMA0
    lda #<VMDATAL
    sta DMA0 + 1
    ldx #$8000
    stx DMA0 + 2
    lda #FIRST_COURSE_BANK
    sta DMA0 + 4
    ldx #$4000
    stx DMA0 + 5
    lda #1
    sta MDMAEN
    ldx #0
    stx VMADDL
    lda #$80
    sta VMAIN
    lda #<VMDATAH
    sta DMA0 + 1
    ldx #$4000
    stx DMA0 + 5
    lda #1
    sta MDMAEN
    stz CGADD
    lda #<CGDATA
    sta DMA0 + 1
    ldx #AUX_PALETTE
    stx DMA0 + 2
    lda #FIRST_COURSE_BANK + 1
    sta DMA0 + 4
    ldx #512
    stx DMA0 + 5
    lda #1
    sta MDMAEN

    SPLIT_SCREEN
    lda #$03
    sta DMA1
    sta DMA2
    lda #<M7A
    sta DMA1 + 1
    lda #<M7C
    sta DMA2 + 1
    ; Centre of rotation: the middle of the world.
    stz M7X
    lda #2
    sta M7X
    stz M7Y
    sta M7Y
    lda #<(512 - 128)
    sta BG1HOFS
    lda #>(512 - 128)
    sta BG1HOFS
    lda #<(512 - VIEW_CENTRE)
    sta BG1VOFS
    lda #>(512 - VIEW_CENTRE)
    sta BG1VOFS
    lda #$1E
    sta HDMAEN
    lda #$0F
    sta INIDISP
    lda RDNMI
    lda #$81
    sta NMITIMEN
sleep:
    wai
    bra sleep
.a16

nmi:
    rep #$30
    pha
    phx
    inc current_frame
    lda current_frame       ; one step of 512 a frame
    and #63
    asl
    tax
    lda view_offsets,x
    sta DMA1 + 2
    sta DMA2 + 2
    lda current_frame
    lsr
    lsr
    lsr
    lsr
    lsr
    lsr
    sep #$20
.a8
    and #7
    clc
    adc #FIRST_VIEW_BANK
    sta DMA1 + 4
    sec
    sbc #2 + FIRST_VIEW_BANK
    and #7
    clc
    adc #FIRST_VIEW_BANK
    sta DMA2 + 4
    lda RDNMI
    rep #$30
.a16
    plx
    pla
    rti

ignore:
    rti

.include "data.s"
.include "header.s"
