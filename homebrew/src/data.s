; Graphics and tables, shared by the game and the minimal ROM of the speed benchmark. All are written by build.py.

.segment "RODATA"
sine:        .incbin "sine.bin"          ; 512 words, -255..255
camera:      .incbin "camera.bin"        ; 512 pairs of words: offset of the centre of rotation from the kart, quarter pixels
turn_rates:  .incbin "turn_rates.bin"    ; 64 bytes: turning rate / 4 for each 32 units of speed
logo:        .incbin "logo.bin"
logo_end:

; Screen split: mode 1 sky, mode 7 road, mode 1 map. Layers: sky and text; road; map and text; sprites always.
split_mode:   .byte VIEW_TOP, $09, VIEW_LINES, $07, 1, $09, 0
split_layers: .byte VIEW_TOP, $16, VIEW_LINES, $11, 1, $16, 0

; Address of each heading's table within its bank.
view_offsets:
.repeat 64, i
    .word $8000 + i * VIEW_TABLE_SIZE
.endrepeat

.segment "GFX"
sky_tiles:   .incbin "sky_tiles.bin"
sky_tiles_end:
sky_map:     .incbin "sky_map.bin"       ; 64 x 5 words
font:        .incbin "font.bin"
font_end:
sprites:     .incbin "sprites.bin"
sprites_end:

.segment "VIEW0"
    .incbin "view0.bin"
.segment "VIEW1"
    .incbin "view1.bin"
.segment "VIEW2"
    .incbin "view2.bin"
.segment "VIEW3"
    .incbin "view3.bin"
.segment "VIEW4"
    .incbin "view4.bin"
.segment "VIEW5"
    .incbin "view5.bin"
.segment "VIEW6"
    .incbin "view6.bin"
.segment "VIEW7"
    .incbin "view7.bin"
